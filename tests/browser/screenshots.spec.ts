import { looks } from './support/looks'
import { OwnRelay } from './support/relay'
import { expect, testWithOwnRelay } from './support/test'
import { Upstream } from './support/upstream'

const answer = {
  reasoning: 'Rayleigh scattering: the strength goes with the inverse fourth power of the wavelength. A table says it best.',
  content: `Air scatters sunlight, and **the shorter the wavelength, the stronger**: blue comes to your eye from all over the sky.

| Colour | Wavelength | Scattering |
| :----- | ---------: | ---------: |
| Violet |     400 nm |        9.4 |
| Blue   |     450 nm |        5.9 |
| Red    |     700 nm |        1.0 |

\`\`\`python
def scattered(nanometres: float) -> float:
    return (700 / nanometres) ** 4
\`\`\`

Violet is scattered even more, but the sun gives less of it, and your eyes see it less well.`,
  prompt_tokens: 14,
  completion_tokens: 184,
  cost: 0.00027,
}

const test = testWithOwnRelay.extend({
  relay: async ({}, use) => {
    const upstream = await Upstream.start(answer)
    const relay = await OwnRelay.start(upstream.env)
    await use(relay)
    await relay.process.stop()
    upstream.stop()
  },
})

for (const [look, options] of Object.entries(looks)) {
  test.describe(look, () => {
    test.use(options)

    test('a conversation for the README', async ({ chat, relay, page }) => {
      for (const title of ['Names for a sailing boat', 'Regular expressions, gently', 'A quiet weekend in the hills'])
        await relay.create({ title })
      await chat.openExisting({})
      await chat.ask('Why is the sky blue?')
      await chat.ends('complete')
      await expect(chat.model).toHaveValue('Auto Router')
      await expect(chat.answer.locator('summary')).toBeVisible()
      await expect(page).toHaveScreenshot(`${look}.png`, { maxDiffPixelRatio: 0.01 })
    })
  })
}
