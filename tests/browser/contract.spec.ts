import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { promisify } from 'node:util'
import { example, packages, root } from './support/paths'
import { expect, test } from './support/test'

const run = promisify(execFile)
const offline = { ...process.env, REDOCLY_TELEMETRY: 'off', REDOCLY_SUPPRESS_UPDATE_NOTICE: 'true' }

test('openapi.json is free of the linter’s complaints', async () => {
  await run(`${packages}/.bin/redocly`, ['lint', '--extends', 'recommended-strict', `${root}openapi.json`], { env: offline })
})

test('the example’s types are those that openapi-typescript makes of openapi.json now', async ({}, testInfo) => {
  const made = testInfo.outputPath('api.d.ts')
  const command = ['exec', '--silent', '--', 'openapi-typescript', '../../openapi.json', '--output', made]
  await run('npm', command, { cwd: example })
  expect(readFileSync(`${example}/src/api.d.ts`, 'utf8')).toBe(readFileSync(made, 'utf8'))
})
