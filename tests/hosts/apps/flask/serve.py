"""The login and a form, which the page leaves to the reader."""

import sys

import messagebus
from app import app
from flask import request, session


@app.post("/login/<int:user_id>")
def login(user_id):
    session["user_id"] = user_id
    return {}


@app.post("/logout")
def logout():
    messagebus.log_out(session.pop("user_id"))
    return {}


@app.post("/say")
def say():
    said = request.get_json()
    messagebus.publish("/topic/1", said["text"], **said["audience"])
    return {}


app.run(port=int(sys.argv[1]))
