import { execFile } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { promisify } from 'node:util'
import { test as base, type BrowserContext, type LaunchOptions, type Page } from '@playwright/test'
import { Cable } from './cable'
import { Chat } from './chat'
import { example } from './paths'
import { freePort, Program } from './programs'
import { Relay, withRelay, type OwnRelay } from './relay'

export { expect } from '@playwright/test'

type Fixtures = {
  /** What the browser's console may say as an error or a warning, besides nothing. */
  mayComplain: RegExp
  complaints: string[]
  relay: Relay
  chat: Chat
  /** The example in another tab. */
  anotherTab: () => Promise<Chat>
}

/** With the relay on 8001 that all tests share; it fails if the browser's console complains. */
export const test = base.extend<Fixtures>({
  mayComplain: [/^$/, { option: true }],
  complaints: [
    async ({ mayComplain }, use) => {
      const complaints: string[] = []
      await use(complaints)
      base.expect(complaints.filter((complaint) => !mayComplain.test(complaint))).toEqual([])
    },
    { auto: true },
  ],
  context: async ({ context, complaints }, use) => {
    watch(context, complaints)
    await use(context)
  },
  relay: new Relay('http://127.0.0.1:8001'),
  chat: ({ page, relay }, use) => use(new Chat(page, relay)),
  anotherTab: ({ context, relay }, use) => use(async () => new Chat(await context.newPage(), relay)),
})

/** Where the browser really goes when a page asks for an address: from `name:port` to a port of this machine. */
type Detours = Record<string, number>

/** How to launch a browser that takes these. */
export function withDetours(options: LaunchOptions, detours: Detours): LaunchOptions {
  const rules = Object.entries(detours).map(([address, port]) => `MAP ${address} 127.0.0.1:${port}`)
  return { ...options, args: [...(options.args ?? []), `--host-resolver-rules=${rules.join(', ')}`] }
}

const testWithDetours = test.extend<{ detours: Detours }>({
  detours: {},
  context: async ({ playwright, launchOptions, detours, complaints }, use) => {
    const browser = await playwright.chromium.launch(withDetours(launchOptions, detours))
    const context = await browser.newContext()
    watch(context, complaints)
    await use(context)
    await browser.close()
  },
})

/** With a relay for each test, behind a cable; the browser finds it under localhost:8001 like any other. */
export const testWithOwnRelay = testWithDetours.extend<{ settings: Record<string, string>; relay: OwnRelay; cable: Cable }>({
  settings: [{}, { option: true }],
  relay: ({ settings }, use) => withRelay(settings, use),
  cable: async ({ relay }, use) => {
    const cable = await Cable.to(relay.port)
    await use(cable)
    cable.remove()
  },
  detours: ({ cable }, use) => use({ 'localhost:8001': cable.port }),
})

/** The settings of a relay that keeps its conversations in a file. */
export const inFile = async ({}, use: (settings: Record<string, string>) => Promise<void>) => {
  const folder = mkdtempSync(`${tmpdir()}/chat-`)
  await use({ STORE_URL: `sqlite:///${folder}/chat.db` })
  rmSync(folder, { recursive: true })
}

/** With a Vite that passes `/api` on, run by this script, on an origin that the relay doesn't list. */
export const testThroughVite = test.extend<{ script: 'dev:proxy' | 'preview'; viteEnv: Record<string, string> }>({
  script: ['dev:proxy', { option: true }],
  viteEnv: {},
  baseURL: async ({ script, viteEnv }, use, testInfo) => {
    const port = String(await freePort())
    const dist = ['--outDir', testInfo.outputPath('dist')]
    const command = ['npm', 'run', script, '--', '--host', '127.0.0.1', '--port', port]
    if (script === 'preview') {
      await promisify(execFile)('npm', ['run', 'build', '--', '--mode', 'proxy', ...dist], { cwd: example })
      command.push(...dist)
    }
    const vite = new Program(`http://127.0.0.1:${port}`, command, viteEnv, example)
    await vite.start()
    await use(vite.url)
    await vite.stop()
  },
})

function watch(context: BrowserContext, complaints: string[]) {
  context.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) complaints.push(`${message.text()} (${message.location().url})`)
  })
  context.on('weberror', (error) => complaints.push(String(error.error())))
}

/** Lets requests of this kind wait until the function that it returns is called. */
export async function hold(page: Page, method: string, url: string | RegExp): Promise<() => void> {
  let release = () => {}
  const released = new Promise<void>((resolve) => (release = resolve))
  await page.route(url, async (route) => {
    if (route.request().method() === method) await released
    await route.fallback()
  })
  return release
}

/** What a page does at the relay from now on: every request that changes something, and every stream. */
export function actionsOf(page: Page): string[] {
  const actions: string[] = []
  page.on('request', (request) => {
    const { pathname, search } = new URL(request.url())
    if (!['GET', 'OPTIONS'].includes(request.method()) || pathname.endsWith('/stream')) actions.push(`${request.method()} ${pathname}${search}`)
  })
  return actions
}

/** The next requests of this kind get no answer; the relay has taken them, if it is named, else they never reach it. */
export async function lose(page: Page, method: string, url: RegExp, { times = 1, takenBy }: { times?: number; takenBy?: Relay } = {}) {
  await page.route(url, async (route) => {
    const request = route.request()
    if (request.method() !== method || times-- <= 0) return route.fallback()
    if (takenBy) await takenBy.take(request)
    await route.abort()
  })
}

/** The addresses that a page asks for from now on. */
export function requestsOf(page: Page): string[] {
  const urls: string[] = []
  page.on('request', (request) => urls.push(request.url()))
  return urls
}
