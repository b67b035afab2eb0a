import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { promisify } from 'node:util'
import { example } from './support/paths'
import { expect, test } from './support/test'

const npm = (...args: string[]) => promisify(execFile)('npm', ['--silent', ...args], { cwd: example })

test('the example is free of type errors and of the linter’s complaints', async () => {
  await npm('run', 'typecheck')
  await npm('run', 'lint')
})

test('the example builds', async ({}, testInfo) => {
  await npm('run', 'build', '--', '--outDir', testInfo.outputPath('dist'))
  expect(readFileSync(testInfo.outputPath('dist/index.html'), 'utf8')).toContain('<title>Chat relay</title>')
})

test('its types are those that openapi-typescript makes of openapi.json now', async ({}, testInfo) => {
  const made = testInfo.outputPath('api.d.ts')
  await npm('exec', '--', 'openapi-typescript', '../../openapi.json', '--output', made)
  expect(readFileSync(`${example}/src/api.d.ts`, 'utf8')).toBe(readFileSync(made, 'utf8'))
})
