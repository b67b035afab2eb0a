import { execFile } from 'node:child_process'
import { copyFileSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { promisify } from 'node:util'
import { example, shownFor } from './support/paths'
import { expect, test } from './support/test'

const run = promisify(execFile)
const npm = (...args: string[]) => run('npm', ['--silent', ...args], { cwd: example })

test('the example is free of type errors and of the linter’s complaints', async () => {
  await npm('run', 'typecheck')
  await npm('run', 'lint')
})

test('the example builds', async ({}, testInfo) => {
  await npm('run', 'build', '--', '--outDir', testInfo.outputPath('dist'))
  expect(readFileSync(testInfo.outputPath('dist/index.html'), 'utf8')).toContain('<title>Chat relay</title>')
})

test('the hook’s files and the README’s component are all that another app needs, and render on a server', async ({}, testInfo) => {
  const app = testInfo.outputPath('app')
  mkdirSync(app)
  for (const file of ['useRelayChat.ts', 'useReading.ts', 'follow.ts', 'relay.ts', 'types.ts']) copyFileSync(`${example}/src/${file}`, `${app}/${file}`)
  const [shown, ...others] = ['examples/react/README.md', 'docs/clients.md'].flatMap((page) => shownFor(app, page))
  expect(others).toHaveLength(1)
  writeFileSync(`${app}/Chat.tsx`, shown!)
  writeFileSync(`${app}/Answers.tsx`, others[0]!)
  writeFileSync(`${app}/tsconfig.json`, `{ "extends": "${example}/tsconfig.json", "include": ["."] }`)
  symlinkSync(`${example}/node_modules`, `${app}/node_modules`)

  await run(`${example}/node_modules/.bin/tsc`, ['--project', app])
  const { stdout } = await run('node', ['--input-type=module', '--eval', render], { cwd: app })
  expect(stdout).toContain('<input aria-label="Message"')
})

const render = `
  import { createElement } from 'react'
  import { renderToString } from 'react-dom/server'
  import { createServer } from 'vite'
  const vite = await createServer({ configFile: false, appType: 'custom', server: { middlewareMode: true, ws: false } })
  const { Chat } = await vite.ssrLoadModule('/Chat.tsx')
  console.log(renderToString(createElement(Chat)))
  process.exit()`
