import { once } from 'node:events'
import { createServer, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

export type Answer = { reasoning: string; content: string; prompt_tokens: number; completion_tokens: number; cost: number }

/** An upstream that has one model and gives this answer to every question. */
export class Upstream {
  static readonly model = 'openrouter/auto'
  private readonly server: Server

  private constructor(answer: Answer) {
    this.server = createServer((request, response) => {
      request.resume()
      if (request.method === 'GET') list(response)
      else stream(response, answer)
    })
  }

  static async start(answer: Answer): Promise<Upstream> {
    const upstream = new Upstream(answer)
    await once(upstream.server.listen(0, '127.0.0.1'), 'listening')
    return upstream
  }

  /** What a relay needs in its environment to ask this one. */
  get env() {
    const { port } = this.server.address() as AddressInfo
    return { OPENROUTER_BASE_URL: `http://127.0.0.1:${port}`, OPENROUTER_API_KEY: 'any', MODEL_NAME: Upstream.model }
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

function stream(response: ServerResponse, { reasoning, content, ...usage }: Answer) {
  const deltas = [{ reasoning }, { content }]
  const chunks: object[] = deltas.map((delta) => ({ choices: [{ index: 0, delta, finish_reason: null }] }))
  chunks.push({ choices: [{ index: 0, delta: {}, finish_reason: 'stop' }], usage })
  response.setHeader('Content-Type', 'text/event-stream')
  response.end([...chunks.map((chunk) => JSON.stringify(chunk)), '[DONE]'].map((data) => `data: ${data}\n\n`).join(''))
}
