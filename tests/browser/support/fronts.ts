import { execFile } from 'node:child_process'
import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { promisify } from 'node:util'
import { root, shownFor } from './paths'

const run = promisify(execFile)

type Front = {
  /** In examples/: the page, and the tools that build it. */
  example: string
  /** The folder whose packages it runs on. */
  packages: string
  /** Other than index.html. */
  page?: string
  /** Whether it is the README's, in the place of the example's own. */
  fromReadme?: boolean
}

/** The pages that use the adapters. */
export const fronts = {
  'ai-sdk on ai 5': { example: 'ai-sdk', packages: 'tests/browser/ai-5' },
  'ai-sdk on ai 6': { example: 'ai-sdk', packages: 'tests/browser/ai-6' },
  'ai-sdk on ai 7': { example: 'ai-sdk', packages: 'examples/ai-sdk' },
  'tanstack-ai': { example: 'tanstack-ai', packages: 'examples/tanstack-ai' },
  'assistant-ui': { example: 'assistant-ui', packages: 'examples/assistant-ui' },
  'assistant-ui on the AI SDK': { example: 'assistant-ui', packages: 'examples/assistant-ui', page: 'transport.html' },
  'the README of ai-sdk': { example: 'ai-sdk', packages: 'examples/ai-sdk', fromReadme: true },
  'the README of tanstack-ai': { example: 'tanstack-ai', packages: 'examples/tanstack-ai', fromReadme: true },
} satisfies Record<string, Front>

export type FrontName = keyof typeof fronts

/** Where a page is after `build`. */
export const built = (name: FrontName) => `${root}tests/browser/fronts/${name.replaceAll(' ', '-')}`

/** Checks a page's types against the packages that it runs on, and makes one that runs effects twice, as `npm run dev` does. */
export async function build(name: FrontName) {
  const { example, packages, page = 'index.html', fromReadme }: Front = fronts[name]
  const source = `${root}examples/${example}`
  const app = `${root}${packages}/dist/${name.replaceAll(' ', '-')}`
  rmSync(app, { recursive: true, force: true })
  cpSync(`${source}/src`, `${app}/src`, { recursive: true })
  cpSync(`${source}/${page}`, `${app}/index.html`)
  const transport = `${app}/src/relay-transport.ts`
  if (existsSync(transport)) cpSync(`${root}examples/ai-sdk/src/relay-transport.ts`, transport) // as somebody copies it
  const [shown = '', ...others] = [`examples/${example}/README.md`, 'docs/clients.md'].flatMap((page) => shownFor(`${app}/src`, page))
  for (const [number, code] of [shown, ...others].entries()) writeFileSync(`${app}/src/Shown${number}.tsx`, code)
  if (fromReadme) {
    writeFileSync(`${app}/src/App.tsx`, shown)
    const main = readFileSync(`${app}/src/main.tsx`, 'utf8')
    writeFileSync(`${app}/src/main.tsx`, main.replace('{ App }', 'App'))
  }
  const compilerOptions = { types: [`${source}/node_modules/vite/client`] }
  writeFileSync(`${app}/tsconfig.json`, JSON.stringify({ extends: `${source}/tsconfig.json`, compilerOptions, include: ['src'] }))
  if (!fromReadme && page === 'index.html') await run(`${source}/node_modules/.bin/tsc`, ['--project', app])
  const out = ['--mode', 'development', '--outDir', built(name), '--emptyOutDir', '--logLevel', 'warn']
  await run(`${source}/node_modules/.bin/vite`, ['build', app, ...out], { env: { ...process.env, NODE_ENV: 'development' } })
}
