import { existsSync } from 'node:fs'
import { defineConfig } from '@playwright/test'
import { example, fonts, relayCommand } from './support/paths'

const timeout = 120_000 // ms; a busy machine takes its time
const chromium = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(existsSync)

const relay = `exec env -i PATH="$PATH" LOG_LEVEL=ERROR ${relayCommand.map((part) => `'${part}'`).join(' ')}`

// Vite and the relay run where everybody runs them, so neither `make demo` nor `make react` may be running.
export default defineConfig({
  outputDir: 'results',
  fullyParallel: true,
  workers: 3,
  forbidOnly: Boolean(process.env.CI),
  retries: 1, // on a busy machine Chromium itself may go away; what passes only then is listed as flaky
  timeout,
  expect: { timeout: 30_000 },
  reporter: 'list',
  // Screenshots are made, not compared: one is written again if more than a few pixels of it have changed.
  snapshotPathTemplate: '../../docs/screenshots/{arg}{ext}',
  updateSnapshots: 'changed',
  use: {
    baseURL: 'http://localhost:5173',
    viewport: { width: 1280, height: 800 },
    screenshot: 'only-on-failure',
    launchOptions: {
      executablePath: chromium,
      args: ['--disable-gpu', '--disable-quic', '--disable-sync'],
      env: { ...process.env, FONTCONFIG_FILE: fonts },
    },
  },
  webServer: [
    { command: relay, url: 'http://127.0.0.1:8001/health', timeout },
    { command: 'exec npm run dev', cwd: example, url: 'http://localhost:5173', timeout },
  ],
  projects: [
    { name: 'start', testMatch: '*.setup.ts', workers: 2 },
    // A relay and a browser for each test: more at a time make the answers slower, not the tests faster, on two cores.
    { name: 'chromium', testIgnore: 'fronts.spec.ts', dependencies: ['start'], workers: 2 },
    // They share these, and wait for words most of the time.
    { name: 'fronts', testMatch: 'fronts.spec.ts', dependencies: ['start'] },
  ],
})
