// The ajax function that message-bus.js needs where there is no jQuery.
//
// It is called with options in jQuery's manner and has to answer with `success` or `error`, and
// then always with `complete`: without that there is no next poll. What message-bus.js sends on
// purpose, an abort after subscribe or unsubscribe, must be reported as "abort". It then polls
// again at once; after any other error it waits for `callbackInterval`.
(function () {
  "use strict";

  MessageBus.ajax = function (options) {
    const xhr = new XMLHttpRequest();

    const finish = function (failure) {
      if (failure) options.error(xhr, failure);
      options.complete(xhr, failure || "success");
    };

    xhr.onload = function () {
      if (xhr.status < 200 || xhr.status > 299) return finish("error");
      try {
        options.success(xhr.responseText);
      } catch {
        return finish("parsererror");
      }
      finish(null);
    };
    xhr.onerror = () => finish("error");
    xhr.onabort = () => finish("abort");

    xhr.open(options.type, options.url);
    xhr.setRequestHeader("Content-Type", "application/x-www-form-urlencoded; charset=UTF-8");
    for (const [name, value] of Object.entries(options.headers)) {
      xhr.setRequestHeader(name, value);
    }
    // Reads the frames of a streamed response as they come in.
    if (options.messageBus.chunked) options.messageBus.onProgressListener(xhr);
    xhr.send(new URLSearchParams(options.data).toString());
    return xhr;
  };
})();
