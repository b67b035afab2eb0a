import type { Request } from '@playwright/test'
import { relayCommand } from './paths'
import { freePort, Program } from './programs'

export type Message = {
  id: string
  role: 'user' | 'assistant'
  content: string
  reasoning: string | null
  model: string | null
  status: 'complete' | 'streaming' | 'stopped' | 'failed'
  generation_id: string | null
}

/** What a relay says when it is asked, past the browser. */
export class Relay {
  constructor(readonly url: string) {}

  async messages(conversation: string): Promise<Message[]> {
    return (await this.get<{ messages: Message[] }>(`/conversations/${conversation}/messages`)).messages
  }

  conversation(id: string) {
    return this.get<{ title: string | null }>(`/conversations/${id}`)
  }

  counts() {
    return this.get<{ conversations: number; messages: number; replies_in_progress: number }>('/health')
  }

  /** Returns its id. */
  async create(conversation: object): Promise<string> {
    return (await this.post<{ id: string }>('/conversations', conversation)).id
  }

  /** A question whose answer nobody has asked for yet. */
  async ask(conversation: string, content: string): Promise<void> {
    await this.post(`/conversations/${conversation}/messages`, { content })
  }

  /** Sends it a browser's request, and leaves as soon as it has been taken. */
  async take(request: Request): Promise<void> {
    const { accept = '', 'content-type': type = '' } = await request.allHeaders()
    const { pathname } = new URL(request.url())
    const headers = { Accept: accept, 'Content-Type': type }
    const response = await fetch(this.url + pathname, { method: request.method(), headers, body: request.postData() })
    await response.body?.cancel()
  }

  async delete(conversation: string): Promise<void> {
    await fetch(`${this.url}/conversations/${conversation}`, { method: 'DELETE' })
  }

  /** Deletes every conversation. */
  async clear(): Promise<void> {
    const { conversations } = await this.get<{ conversations: { id: string }[] }>('/conversations?limit=200')
    await Promise.all(conversations.map(({ id }) => this.delete(id)))
  }

  private async get<T>(path: string): Promise<T> {
    return (await fetch(this.url + path)).json()
  }

  private async post<T>(path: string, body: object): Promise<T> {
    const headers = { 'Content-Type': 'application/json' }
    return (await fetch(this.url + path, { method: 'POST', headers, body: JSON.stringify(body) })).json()
  }
}

/** A relay of its own while `use` runs. */
export async function withRelay(settings: Record<string, string>, use: (relay: OwnRelay) => Promise<void>) {
  const relay = await OwnRelay.start(settings)
  await use(relay)
  await relay.process.stop()
}

/** A relay in a process of its own, on the demo upstream unless `env` names another one. */
export class OwnRelay extends Relay {
  private constructor(
    readonly port: number,
    readonly process: Program,
  ) {
    super(process.url)
  }

  static async start(env: Record<string, string> = {}): Promise<OwnRelay> {
    const port = await freePort()
    const command = 'OPENROUTER_BASE_URL' in env ? relayCommand.slice(0, -1) : relayCommand
    const relay = new OwnRelay(port, new Program(`http://127.0.0.1:${port}`, command, { PORT: String(port), ...env }))
    await relay.process.start()
    return relay
  }

  /** How often upstream was asked for an answer to this conversation. */
  generations(conversation: string): number {
    const lines = this.process.output.split('\n')
    return lines.filter((line) => line.includes(`Streaming response for conversation ${conversation} `)).length
  }
}
