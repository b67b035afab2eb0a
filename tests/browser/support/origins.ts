import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'

const html = '<!doctype html><html lang="en"><link rel="icon" href="data:,"><title>A page</title></html>'

/** Serves an empty page on a port of this machine (0: a free one) while `visit` runs. */
export async function withPage<T>(port: number, visit: (port: number) => Promise<T>): Promise<T> {
  const server = createServer((_, response) => response.setHeader('Content-Type', 'text/html').end(html))
  await once(server.listen(port, '127.0.0.1'), 'listening')
  try {
    return await visit((server.address() as AddressInfo).port)
  } finally {
    server.closeAllConnections()
    server.close()
  }
}
