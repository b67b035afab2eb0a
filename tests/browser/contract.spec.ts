import { execFile } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { promisify } from 'node:util'
import { example, packages, root } from './support/paths'
import { expect, test } from './support/test'

const run = promisify(execFile)
const offline = { ...process.env, REDOCLY_TELEMETRY: 'off', REDOCLY_SUPPRESS_UPDATE_NOTICE: 'true' }

test('openapi.json is free of the linter’s complaints', async () => {
  await run(`${packages}/.bin/redocly`, ['lint', '--extends', 'recommended-strict', `${root}openapi.json`], { env: offline })
})

test('what the contract describes is what the example’s types take it for', async ({}, testInfo) => {
  const made = testInfo.outputPath('contract.d.ts')
  await run(`${packages}/.bin/openapi-typescript`, [`${root}openapi.json`, '--output', made])
  const names = ['Conversation', 'ConversationList', 'Message', 'MessageList', 'Model', 'ModelList', 'ReasoningEvent', 'ReplyEvent']
  const check = [
    `import type { components } from './contract'`,
    `import type * as types from '${example}/src/types'`,
    `type Told = components['schemas']`,
    ...[...names.map((name) => [name, name]), ['Problem', 'ProblemBody']].map(
      ([told, read]) => `export const read${read} = (told: Told['${told}']): types.${read} => told`,
    ),
  ]
  writeFileSync(testInfo.outputPath('check.ts'), check.join('\n'))
  const compilerOptions = { noEmit: true, strict: true, skipLibCheck: true, module: 'esnext', moduleResolution: 'bundler', types: [] }
  writeFileSync(testInfo.outputPath('tsconfig.json'), JSON.stringify({ compilerOptions, files: ['check.ts'] }))
  const { stdout } = await run(`${packages}/.bin/tsc`, ['--project', testInfo.outputPath('tsconfig.json')]).catch((error) => error)
  expect(stdout).toBe('')
})
