import { expect, test } from './support/test'

/** What each model of trouble ends with: the status, what the answer says, and the button that leads out of it. */
const outcomes = [
  { model: 'demo/rate-limited', ends: 'failed', says: /A rate limit is reached.*Try again in \d+ s/ },
  { model: 'demo/no-credit', ends: 'failed', says: /no credit left.*Choose another model, or edit your message/ },
  { model: 'demo/moderated', ends: 'failed', says: /moderation.*Choose another model, or edit your message/ },
  { model: 'demo/cut-off', ends: 'failed', says: /breaks off in the middle.*connection to upstream broke.*Try again/ },
  { model: 'demo/error', ends: 'failed', says: /goes well until the.*Provider disconnected unexpectedly.*Try again/ },
  { model: 'demo/busy', ends: 'complete', says: /I was busy twice\. This is try number 3/ },
  { model: 'demo/empty', ends: 'complete', says: /no text · demo\/empty/ },
  { model: 'demo/length', ends: 'complete', says: /this one is at its.*cut off: the model’s limit of tokens was reached/ },
] as const

for (const { model, ends, says } of outcomes) {
  test(`${model} ends as it must, and another model answers in its place`, async ({ chat }) => {
    await chat.openExisting({ default_model: model })
    await chat.ask(`What does ${model} do?`)
    await expect(chat.answer).toHaveAccessibleName(`Answer of ${model}`)
    await chat.ends(ends)
    await expect(chat.answer).toContainText(says)

    const other = model === 'demo/length' ? 'demo/echo' : 'demo/length'
    await chat.pick(other)
    const again = ends === 'failed' ? `Try again with ${other}` : 'Regenerate'
    await chat.answer.getByRole('button', { name: again, exact: true }).click()
    await expect(chat.answer).toHaveAccessibleName(`Answer of ${other}`)
    await chat.ends('complete')
    await chat.showsWhatIsStored()
    await expect(chat.answers).toHaveCount(1)
    expect((await chat.stored()).map(({ status }) => status)).toEqual(['complete', 'complete'])
  })
}

test('demo/silent says nothing until it is stopped, and another model answers in its place', async ({ chat }) => {
  await chat.openExisting({ default_model: 'demo/silent' })
  await chat.ask('Say something')
  await expect(chat.answer.getByText('Waiting for the answer')).toBeVisible()
  await chat.stop.click()
  await chat.ends('stopped')
  await expect(chat.answer).toContainText('stopped · demo/silent')

  await chat.pick('demo/length')
  await chat.answer.getByRole('button', { name: 'Regenerate', exact: true }).click()
  await expect(chat.answer).toHaveAccessibleName('Answer of demo/length')
  await chat.ends('complete')
  await chat.showsWhatIsStored()
})

test('a rate limit counts down, and lets the same model be asked again only then', async ({ chat, page }) => {
  await page.clock.install()
  await chat.openExisting({ default_model: 'demo/rate-limited' })
  await chat.ask('Now!')
  await chat.ends('failed')
  const again = chat.answer.getByRole('button', { name: /^Try again/ })
  await expect(again).toBeDisabled()
  await page.clock.fastForward(61_000)
  await expect(again).toHaveText('Try again')
  await again.click()
  await expect(again).toBeDisabled()
  await expect(chat.answers).toHaveCount(1)
})
