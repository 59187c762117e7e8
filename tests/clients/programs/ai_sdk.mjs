// Vercel's AI SDK: a file, with the model name and the response format that it sends.
import { readFile } from "node:fs/promises";
import { createOpenAI } from "@ai-sdk/openai";
import { experimental_transcribe as transcribe } from "ai";

const [url, path] = process.argv.slice(2);
const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey: "any" });
const result = await transcribe({ model: openai.transcription("gpt-4o-mini-transcribe"), audio: await readFile(path) });
console.log(result.text);
