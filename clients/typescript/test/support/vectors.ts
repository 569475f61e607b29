import { readFileSync } from "node:fs";

/** Read a file of `clients/vectors`. */
export function vectors<T>(name: string): T {
  const url = new URL(`../../../../vectors/${name}.json`, import.meta.url);
  return JSON.parse(readFileSync(url, "utf-8")) as T;
}
