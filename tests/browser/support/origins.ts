import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer, type RequestListener } from 'node:http'
import type { AddressInfo } from 'node:net'
import { extname } from 'node:path'

const html = '<!doctype html><html lang="en"><link rel="icon" href="data:,"><title>A page</title></html>'

/** Serves an empty page on a port of this machine (0: a free one) while `visit` runs. */
export function withPage<T>(port: number, visit: (port: number) => Promise<T>): Promise<T> {
  return serving((_, response) => response.setHeader('Content-Type', 'text/html').end(html), port, visit)
}

/** A folder that Vite has built, on a port of this machine. */
export type Site = { folder: string; readonly port: number }

/** Serves a folder, which may change, while `visit` runs. */
export function withSite<T>(visit: (site: Site) => Promise<T>): Promise<T> {
  const types: Record<string, string> = { '.js': 'text/javascript', '.css': 'text/css', '.html': 'text/html; charset=utf-8' }
  const answer: RequestListener = ({ url = '' }, response) => {
    const { pathname } = new URL(url, 'http://localhost')
    const file = pathname === '/' ? '/index.html' : pathname
    response.setHeader('Content-Type', types[extname(file)] ?? 'application/octet-stream').end(readFileSync(site.folder + file))
  }
  const site = { folder: '', port: 0 }
  return serving(answer, 0, (port) => visit(Object.assign(site, { port })))
}

async function serving<T>(answer: RequestListener, port: number, visit: (port: number) => Promise<T>): Promise<T> {
  const server = createServer(answer)
  await once(server.listen(port, '127.0.0.1'), 'listening')
  try {
    return await visit((server.address() as AddressInfo).port)
  } finally {
    server.closeAllConnections()
    server.close()
  }
}
