import { readFileSync, writeFileSync } from 'node:fs'
import { film, looksLike, type Frame } from './support/film'
import { root } from './support/paths'
import { OwnRelay } from './support/relay'
import { expect, inFile, testWithOwnRelay } from './support/test'
import { Upstream } from './support/upstream'

const seen = 'Air scatters sunlight, and the shorter the wavelength, the stronger. Blue comes to your eye from all over the sky'
const stops = [26, 68, seen.length] // characters
const answer = {
  reasoning: '',
  content: `${seen}; violet is scattered even more, but the sun gives less of it, and your eyes see it less well.`,
  prompt_tokens: 14,
  completion_tokens: 52,
  cost: 0.00027,
}

const file = `${root}docs/screenshots/survives.png`

const test = testWithOwnRelay.extend<{ upstream: Upstream }>({
  settings: inFile,
  mayComplain: /net::ERR_|Failed to load resource/,
  viewport: { width: 480, height: 520 },
  upstream: async ({}, use) => {
    const upstream = await Upstream.start(answer, ...stops)
    await use(upstream)
    upstream.stop()
  },
  relay: async ({ settings, upstream }, use) => {
    const relay = await OwnRelay.start({ ...settings, ...upstream.env })
    await use(relay)
    await relay.process.stop()
  },
})

test('an answer that survives a reload and a restart, for the README', async ({ chat, context, relay, upstream, page }) => {
  const stage = await context.newPage()
  await stage.setViewportSize({ width: 480, height: 568 })
  const frames: Frame[] = []
  const frame = async (caption: string, seconds: number) => {
    const picture = (await page.screenshot({ animations: 'disabled' })).toString('base64')
    await stage.setContent(`<body style="margin: 0; background: #23211e; color: white; font: 18px Inter">
      <p style="margin: 0; padding: 12px 16px; line-height: 24px">${caption}</p><img src="data:image/png;base64,${picture}">`)
    await expect(stage.locator('img')).toBeVisible()
    frames.push({ png: await stage.screenshot(), seconds })
  }
  await chat.openExisting({})
  const address = page.url()
  await chat.ask('Why is the sky blue?')
  for (const stop of stops) {
    await chat.reaches(stop)
    await frame(stop === seen.length ? 'It goes on …' : 'An answer is on its way.', 0.8)
    if (stop === stops[1]) {
      await page.goto('about:blank')
      await frame('The page is reloaded …', 0.8)
      await page.goto(address)
      await chat.reaches(stop)
      await frame('… and nothing is lost.', 1.5)
    }
    if (stop !== seen.length) upstream.release()
  }
  await relay.process.stop('SIGKILL')
  await expect(chat.notice).toContainText('The connection is lost.')
  await frame('The relay is killed …', 1.5)
  await relay.process.start()
  await chat.ends('failed')
  await expect(chat.notice).toHaveCount(0)
  expect(await chat.text()).toBe(seen)
  await frame('… and restarted: what was seen is kept.', 2)
  upstream.release()
  await chat.answer.getByRole('button', { name: 'Try again' }).click()
  await chat.ends('complete')
  await chat.showsWhatIsStored()
  await frame('One click: all of it, in one message.', 3)
  const made = film(frames)
  expect(made.length).toBeLessThan(400_000)
  if (!(await looksLike(page, made, readFileSync(file)))) writeFileSync(file, made)
})
