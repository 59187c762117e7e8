// OpenAI's client for Node: a file, streamed.
import { createReadStream } from "node:fs";
import OpenAI from "openai";

const [url, path] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any" });
const file = createReadStream(path);
const events = await client.audio.transcriptions.create({ file, model: "gpt-4o-transcribe", stream: true });
let text = "";
for await (const event of events) if (event.type === "transcript.text.delta") text += event.delta;
console.log(text);
