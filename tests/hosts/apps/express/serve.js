// The login and a form, which the page leaves to the reader.
const express = require("express");
const app = require("./app.js");
const messagebus = require("./messagebus.js");

app.post("/login/:id", (request, response) => {
  request.session.userId = Number(request.params.id);
  response.json({});
});

app.post("/logout", (request, response) => {
  const { userId } = request.session;
  request.session.destroy(async () => {
    await messagebus.logOut(userId);
    response.json({});
  });
});

app.post("/say", express.json(), async (request, response) => {
  await messagebus.publish("/topic/1", request.body.text, request.body.audience);
  response.json({});
});

app.listen(Number(process.argv[2]), "127.0.0.1");
