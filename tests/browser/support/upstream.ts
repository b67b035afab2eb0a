import { once } from 'node:events'
import { createServer, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

export type Answer = { reasoning: string; content: string; prompt_tokens: number; completion_tokens: number; cost: number }

/** An upstream that has one model and gives this answer to every question. */
export class Upstream {
  static readonly model = 'openrouter/auto'
  private readonly server: Server
  private goOn = () => {}

  private constructor(answer: Answer, at: number) {
    const released = at < answer.content.length ? new Promise<void>((resolve) => (this.goOn = resolve)) : undefined
    this.server = createServer((request, response) => {
      request.resume()
      if (request.method === 'GET') list(response)
      else void stream(response, answer, at, released)
    })
  }

  /** With `at`, its answers stop after so many characters, until they are released. */
  static async start(answer: Answer, at = answer.content.length): Promise<Upstream> {
    const upstream = new Upstream(answer, at)
    await once(upstream.server.listen(0, '127.0.0.1'), 'listening')
    return upstream
  }

  /** What a relay needs in its environment to ask this one. */
  get env() {
    const { port } = this.server.address() as AddressInfo
    return { OPENROUTER_BASE_URL: `http://127.0.0.1:${port}`, OPENROUTER_API_KEY: 'any', MODEL_NAME: Upstream.model }
  }

  release() {
    this.goOn()
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

async function stream(response: ServerResponse, answer: Answer, at: number, released?: Promise<void>) {
  const { reasoning, content, ...usage } = answer
  const delta = (delta: object) => ({ choices: [{ index: 0, delta, finish_reason: null }] })
  const send = (...chunks: object[]) => response.write(chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`).join(''))
  response.setHeader('Content-Type', 'text/event-stream')
  send(delta({ reasoning }), delta({ content: content.slice(0, at) }))
  await released
  send(delta({ content: content.slice(at) }), { choices: [{ index: 0, delta: {}, finish_reason: 'stop' }], usage })
  response.end('data: [DONE]\n\n')
}
