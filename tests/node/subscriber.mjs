// Reads the verdict stream as the README describes it. Prints each live verdict as a JSON line, and at the end
// a line with what else was there. Ends after so many verdicts and a heartbeat that follows them, or by silence.
//
//     node subscriber.mjs ENDPOINT COUNT FOLDER-WITH-NODE_MODULES [SILENCE-MS]
import {createRequire} from "node:module"

const [endpoint, count, packages, silence = "1500"] = process.argv.slice(2)
const {Subscriber} = createRequire(`${packages}/`)("zeromq")

const socket = new Subscriber()
socket.receiveTimeout = Number(silence) // three heartbeats missed
socket.connect(endpoint)
socket.subscribe("verdict/", "heartbeat/")

const seen = {heartbeats: 0, replayed: 0, gaps: 0, silence: false}
const newest = {} // topic -> seq
let verdicts = 0
try {
  for await (const [topic, body] of socket) {
    const message = JSON.parse(body.toString("utf8"))
    if (message.schema === "inspectd.heartbeat/1") {
      seen.heartbeats += 1
      for (const [name, seq] of Object.entries(message.topics)) {
        if (name in newest && newest[name] < seq) seen.gaps += 1
      }
      if (verdicts >= Number(count)) break
      continue
    }
    if (message.replayed) {
      seen.replayed += 1
      continue
    }
    const name = topic.toString("utf8")
    if (name in newest && message.seq !== newest[name] + 1) seen.gaps += 1
    newest[name] = message.seq
    console.log(JSON.stringify(message))
    verdicts += 1
  }
} catch (error) {
  if (error.code !== "EAGAIN") throw error
  seen.silence = true // nobody there: stop the line
}
console.log(JSON.stringify(seen))
