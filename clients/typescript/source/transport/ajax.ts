/**
 * Polls by a function in jQuery's manner: what pages set as `MessageBus.ajax`.
 *
 * Such functions add headers, look at answers, or count. They get the options that the original
 * passes, and call `success` or `error`.
 */

import { NetworkError } from "../errors/network.js";
import { FORM_TYPE, form, type Transport } from "./transport.js";

/** What is read of an answer; XMLHttpRequest and jQuery's own object both have it. */
export interface AnswerHead {
  readonly status: number;
  /** Null for a header that is missing or hidden. */
  getResponseHeader?(name: string): string | null;
}

/** What the function is called with; what it means is jQuery's and the original's. */
export interface AjaxOptions {
  url: string;
  data: Record<string, number>;
  async: true;
  type: "POST";
  dataType: "text" | "json";
  headers: Record<string, string>;
  messageBus: {
    chunked: boolean;
    /** Has what comes in told from now on. */
    onProgressListener(xhr: XMLHttpRequest): unknown;
  };
  /** Makes the request object, one whose progress is told. */
  xhr(): XMLHttpRequest;
  /** The answer is there as a whole: text, or parsed if `dataType` is json. */
  success(body: unknown, textStatus?: string, head?: AnswerHead): void;
  /** There is none, or one that says no; `textStatus` is `abort` after an abort. */
  error(head?: AnswerHead, textStatus?: string, reason?: unknown): void;
  /** Called last, after either. */
  complete(head?: AnswerHead, textStatus?: string): void;
}

/** A function in jQuery's manner: calls `success` or `error`, and may return what can be aborted. */
export type Ajax = (options: AjaxOptions) =>
  | {
      /** Give the request up. */
      abort?(): void;
    }
  | undefined
  | void;

const JSON_TYPE = "application/json; charset=utf-8";

/** Polls by a function in jQuery's manner, such as `jQuery.ajax` itself. */
export function ajaxTransport(ajax: Ajax): Transport {
  return {
    name: "ajax",
    streams: typeof XMLHttpRequest === "function" && "onprogress" in XMLHttpRequest.prototype,
    send: (exchange, listener) =>
      new Promise((resolve, reject) => {
        let told: number | undefined;
        const tell = (text: string, head: AnswerHead | undefined): void => {
          try {
            if (told === undefined) {
              told = 0;
              const type = exchange.streaming ? null : JSON_TYPE;
              listener.head(head?.status || 200, (name) => {
                const value = head?.getResponseHeader?.(name) ?? null;
                return value === null && name === "content-type" ? type : value;
              });
            }
            const piece = text.slice(told);
            told = text.length;
            if (piece) listener.text(piece);
          } catch (error) {
            reject(error as Error);
          }
        };
        const options: AjaxOptions = {
          url: exchange.url,
          data: { ...exchange.fields },
          async: true,
          type: "POST",
          dataType: exchange.streaming ? "text" : "json",
          headers: { ...exchange.headers },
          messageBus: {
            chunked: exchange.streaming,
            onProgressListener: (xhr) => (xhr.onprogress = () => tell(xhr.responseText, xhr)),
          },
          xhr: () => {
            const xhr = new XMLHttpRequest();
            if (exchange.streaming) options.messageBus.onProgressListener(xhr);
            return xhr;
          },
          success: (body, _textStatus, head) => {
            // Parsed already, perhaps: what there is comes from JSON and goes back.
            tell(typeof body === "string" ? body : JSON.stringify(body ?? []), head);
            resolve();
          },
          error: (head, textStatus) => {
            if (!head?.status || textStatus === "abort") {
              return reject(new NetworkError(told === undefined ? "no answer" : "it broke off"));
            }
            tell("", head);
            // A status that is fine, and yet an error: it broke off, or was not JSON.
            if (head.status < 400) reject(new NetworkError("the answer cannot be used"));
            else resolve();
          },
          complete: () => undefined,
        };
        const request = ajax(options);
        exchange.signal.addEventListener("abort", () => {
          request?.abort?.();
          reject(new NetworkError("aborted"));
        });
      }),
  };
}

/** What `MessageBus.ajax` is unless a page sets it; for pages that wrap it. */
export const defaultAjax: Ajax = (options) => {
  const xhr = new XMLHttpRequest();
  const finish = (failure?: string): void => {
    if (failure) options.error(xhr, failure);
    options.complete(xhr, failure ?? "success");
  };
  xhr.onload = () => {
    const isOk = xhr.status >= 200 && xhr.status < 300;
    if (isOk) options.success(xhr.responseText, "success", xhr);
    finish(isOk ? undefined : "error");
  };
  xhr.onerror = () => finish("error");
  xhr.onabort = () => finish("abort");
  xhr.open(options.type, options.url);
  xhr.setRequestHeader("Content-Type", FORM_TYPE);
  for (const [name, value] of Object.entries(options.headers)) xhr.setRequestHeader(name, value);
  if (options.messageBus.chunked) options.messageBus.onProgressListener(xhr);
  xhr.send(form(options.data));
  return xhr;
};
