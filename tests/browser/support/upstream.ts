import { once } from 'node:events'
import { createServer, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

export type Answer = { reasoning: string; content: string; prompt_tokens: number; completion_tokens: number; cost: number }

/** An upstream that has one model and gives this answer to every question. */
export class Upstream {
  static readonly model = 'openrouter/auto'
  private readonly server: Server
  private readonly releases: (() => void)[] = []

  private constructor(answer: Answer, stops: number[]) {
    const held = stops.map(() => new Promise<void>((resolve) => this.releases.push(resolve)))
    this.server = createServer((request, response) => {
      request.resume()
      if (request.method === 'GET') list(response)
      else void stream(response, answer, stops, held)
    })
  }

  /** Its answers stop after each of these numbers of characters, until they are released. */
  static async start(answer: Answer, ...stops: number[]): Promise<Upstream> {
    const upstream = new Upstream(answer, stops)
    await once(upstream.server.listen(0, '127.0.0.1'), 'listening')
    return upstream
  }

  /** What a relay needs in its environment to ask this one. */
  get env() {
    const { port } = this.server.address() as AddressInfo
    return { OPENROUTER_BASE_URL: `http://127.0.0.1:${port}`, OPENROUTER_API_KEY: 'any', MODEL_NAME: Upstream.model }
  }

  /** Lets answers go on, those that are asked for later, too, from where they stop now to where they stop next. */
  release() {
    this.releases.shift()?.()
  }

  stop() {
    this.server.closeAllConnections()
    this.server.close()
  }
}

function list(response: ServerResponse) {
  response.setHeader('Content-Type', 'application/json')
  response.end(JSON.stringify({ data: [{ id: Upstream.model, name: 'Auto Router', pricing: { prompt: '-1', completion: '-1' } }] }))
}

async function stream(response: ServerResponse, answer: Answer, stops: number[], held: Promise<void>[]) {
  const { reasoning, content, ...usage } = answer
  const delta = (delta: object) => ({ choices: [{ index: 0, delta, finish_reason: null }] })
  const send = (...chunks: object[]) => response.write(chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`).join(''))
  response.setHeader('Content-Type', 'text/event-stream')
  send(delta({ reasoning }))
  for (const [number, stop] of stops.entries()) {
    send(delta({ content: content.slice(stops[number - 1] ?? 0, stop) }))
    await held[number]
  }
  send(delta({ content: content.slice(stops.at(-1) ?? 0) }), { choices: [{ index: 0, delta: {}, finish_reason: 'stop' }], usage })
  response.end('data: [DONE]\n\n')
}
