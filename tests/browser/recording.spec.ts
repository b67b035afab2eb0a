import { OwnRelay } from './support/relay'
import { expect, inFile, testWithOwnRelay } from './support/test'
import { Upstream } from './support/upstream'

const seen = 'Air scatters sunlight, and the shorter the wavelength, the stronger. Blue comes to your eye from all over the sky'
const answer = {
  reasoning: 'Rayleigh scattering.',
  content: `${seen}; violet is scattered even more, but the sun gives less of it, and your eyes see it less well.`,
  prompt_tokens: 14,
  completion_tokens: 52,
  cost: 0.00027,
}

const test = testWithOwnRelay.extend<{ upstream: Upstream }>({
  settings: inFile,
  mayComplain: /net::ERR_|Failed to load resource/,
  viewport: { width: 400, height: 480 },
  upstream: async ({}, use) => {
    const upstream = await Upstream.start(answer, seen.length)
    await use(upstream)
    upstream.stop()
  },
  relay: async ({ settings, upstream }, use) => {
    const relay = await OwnRelay.start({ ...settings, ...upstream.env })
    await use(relay)
    await relay.process.stop()
  },
})

test('an answer that survives a reload and a restart, for the README', async ({ chat, relay, upstream, page }) => {
  const frames: string[] = []
  const frame = async (caption: string) => {
    await expect(chat.notice).toHaveCount(0)
    const png = await page.screenshot({ animations: 'disabled' })
    frames.push(`<figure><img src="data:image/png;base64,${png.toString('base64')}"><figcaption>${caption}</figcaption></figure>`)
  }
  await chat.openExisting({})
  await chat.ask('Why is the sky blue?')
  await chat.reaches(seen.length)
  await frame('1. An answer is on its way.')
  await page.reload()
  await chat.reaches(seen.length)
  await frame('2. The page is reloaded: it goes on.')
  await relay.process.stop('SIGKILL')
  await relay.process.start()
  await chat.ends('failed')
  expect(await chat.text()).toBe(seen)
  await frame('3. The relay is killed and restarted: text is kept.')
  upstream.release()
  await chat.answer.getByRole('button', { name: 'Try again' }).click()
  await chat.ends('complete')
  await chat.showsWhatIsStored()
  await frame('4. One click: all of it, in one message.')

  await page.setViewportSize({ width: 1680, height: 540 })
  await page.setContent(`<body style="display: flex; gap: 16px; margin: 8px; background: white; font: 16px Inter">${frames.join('')}
    <style>figure { margin: 0; width: 400px } img { width: 400px; border-radius: 12px; outline: 1px solid #ddd6ca } figcaption { padding: 8px 4px; color: #23211e }</style>`)
  await expect(page).toHaveScreenshot('survives.png', { maxDiffPixelRatio: 0.01 })
})
