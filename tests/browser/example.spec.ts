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
