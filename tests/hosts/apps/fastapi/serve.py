"""The login and a form, which the page leaves to the reader."""

import sys
from typing import Any

import messagebus
import uvicorn
from app import app
from fastapi import Request


@app.post("/login/{user_id}")
def login(request: Request, user_id: int):
    request.session["user_id"] = user_id
    return {}


@app.post("/logout")
def logout(request: Request):
    messagebus.log_out(request.session.pop("user_id"))
    return {}


@app.post("/say")
def say(said: dict[str, Any]):
    messagebus.publish("/topic/1", said["text"], **said["audience"])
    return {}


uvicorn.run(app, port=int(sys.argv[1]))
