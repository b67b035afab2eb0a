import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createServer, type AddressInfo } from 'node:net'
import { expect } from '@playwright/test'

/** A program that listens; it sees nothing of this one's environment but PATH and HOME. */
export class Program {
  private child?: ChildProcess
  /** What it has written so far. */
  output = ''

  constructor(
    readonly url: string,
    private readonly command: string[],
    private readonly env: Record<string, string>,
    private readonly cwd?: string,
  ) {}

  /** Returns when it answers. */
  async start() {
    const [file = '', ...args] = this.command
    const env = { PATH: process.env.PATH, HOME: process.env.HOME, ...this.env }
    const child = spawn(file, args, { env, cwd: this.cwd, detached: true, stdio: ['ignore', 'pipe', 'pipe'] })
    this.child = child
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (bytes) => (this.output += bytes))
    const answers = async () => {
      expect(child.exitCode, this.output).toBeNull()
      await fetch(this.url, { method: 'HEAD' })
    }
    await expect(answers, this.output).toPass({ timeout: 60_000, intervals: [100] })
  }

  /** Returns when it has exited; with SIGKILL its children are killed, too. */
  async stop(signal: 'SIGTERM' | 'SIGKILL' = 'SIGKILL') {
    const { child } = this
    if (!child?.pid || child.exitCode !== null || child.signalCode !== null) return
    const exited = once(child, 'exit')
    process.kill(signal === 'SIGKILL' ? -child.pid : child.pid, signal)
    await exited
  }
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}
