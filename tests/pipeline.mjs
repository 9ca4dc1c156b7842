// Classify the lines of standard input with transformers.js, offline, and print JSON: node pipeline.mjs PACKAGE FOLDER
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import path from "node:path";

const [library, folder] = process.argv.slice(2);
const { env, pipeline } = await import(pathToFileURL(library));
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder) + "/";
const texts = [];
for await (const line of createInterface({ input: process.stdin })) texts.push(JSON.parse(line));
const classify = await pipeline("text-classification", path.basename(folder));
const together = await classify(texts, { top_k: null });
const alone = [];
for (const text of texts) alone.push((await classify([text], { top_k: null }))[0]);
console.log(JSON.stringify({ together, alone }));
