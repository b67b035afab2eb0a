import { expectGrowth, words, type Chat } from './support/chat'
import { expect, inFile, test, testWithOwnRelay } from './support/test'

const question = `Repeat: ${words(250)}`

test('reloads in the middle of an answer lose nothing and double nothing', async ({ chat, page }) => {
  await chat.open('demo/echo')
  await chat.ask(question)
  const states: string[] = []
  for (const length of [50, 300, 600]) {
    await chat.reaches(length)
    states.push(await chat.text())
    await page.reload()
    await expect(chat.answer).toHaveAttribute('data-status', 'streaming')
    await chat.reaches(states.at(-1)!.length)
  }
  states.push(...(await chat.statesShown()))
  expectGrowth(states, await arrivesWhole(chat))
  expect(await chat.stored()).toHaveLength(2)
})

testWithOwnRelay('two tabs follow one reply, and each sees what the other does', async ({ chat, anotherTab, relay }) => {
  await chat.open('demo/echo')
  await chat.ask(question)
  const other = await anotherTab()
  await other.page.goto(chat.page.url())
  const states = await Promise.all([chat, other].map((tab) => tab.statesShown()))
  for (const [index, tab] of [chat, other].entries()) {
    expect(states[index]!.length).toBeGreaterThan(3)
    expectGrowth(states[index]!, await arrivesWhole(tab))
  }
  expect(relay.generations(chat.id())).toBe(1)

  await other.pick('demo/silent')
  await other.ask('Never mind')
  await expect(chat.questions).toHaveCount(2)
  await chat.stop.click()
  for (const tab of [chat, other]) await tab.ends('stopped')
})

testWithOwnRelay.describe('without a network', () => {
  testWithOwnRelay.use({ mayComplain: /net::ERR_|Failed to load resource/ })

  testWithOwnRelay('an answer cut off again and again arrives whole', async ({ chat, relay, cable }) => {
    await chat.open('demo/long')
    await chat.ask('Count')
    await chat.reaches(10)
    const states = chat.statesShown()
    for (const length of [1_000, 3_000, 5_000]) {
      await chat.reaches(length)
      cable.cut()
      await expect(chat.notice).toContainText('The connection is lost. The answer goes on as soon as it is back')
      cable.mend()
    }
    expectGrowth(await states, await arrivesWhole(chat))
    expect(relay.generations(chat.id())).toBe(1)
  })

  testWithOwnRelay('after some seconds offline an answer goes on where it was', async ({ chat, relay, cable, context }) => {
    await chat.open('demo/echo')
    await chat.ask(question)
    await chat.reaches(50)
    await context.setOffline(true)
    cable.cut()
    await expect(chat.notice).toContainText('The connection is lost.')
    await finishes(relay) // nobody listens, and it goes on
    const states = [await chat.text()]
    expect(states[0]).not.toMatch(/trouble\.$/)
    const shown = chat.statesShown()
    cable.mend()
    await context.setOffline(false)
    states.push(...(await shown))
    expectGrowth(states, await arrivesWhole(chat))
    expect(relay.generations(chat.id())).toBe(1)
  })

  testWithOwnRelay('stop and rename say that they may not have been done', async ({ chat, cable, page }) => {
    await chat.open('demo/silent')
    await chat.ask('Stop me')
    await expect(chat.answer).toHaveAttribute('data-status', 'streaming')
    cable.cut()
    await expect(chat.notice).toContainText('The connection is lost.')
    await chat.stop.click()
    await expect(page.getByRole('alert')).toContainText('may not have been done')
    cable.mend()
    await expect(chat.notice).toHaveCount(0)
    await chat.stop.click()
    await chat.ends('stopped')
    await expect(page.getByRole('alert')).toHaveCount(0)

    cable.cut()
    const row = page.getByRole('listitem').filter({ has: page.locator('[aria-current]') })
    await row.hover()
    await row.getByRole('button', { name: 'Rename Stop me' }).click()
    await page.getByRole('textbox', { name: 'New title of Stop me' }).press('Enter')
    await expect(page.getByRole('alert')).toContainText('may not have been done')
  })

  testWithOwnRelay('a question that can’t be sent stays in the box until it can, and then goes by itself', async ({ chat, cable, page, relay }) => {
    await chat.open('demo/length')
    cable.cut()
    await chat.box.fill('Is anybody there?')
    await chat.send.click()
    await expect(page.getByRole('alert')).toContainText(
      /^Can’t reach the relay at http:\/\/localhost:8001\. Is it running\? If so, is http:\/\/localhost:5173 in .* Trying again …/,
    )
    await expect(chat.box).toHaveValue('Is anybody there?')
    cable.mend()
    await expect(chat.questions).toHaveText([/^Is anybody there\?/])
    await arrivesWhole(chat)
    await expect(page.getByRole('alert')).toHaveCount(0)
    await expect(chat.box).toHaveValue('')
    expect(await relay.counts()).toMatchObject({ conversations: 1, messages: 2 })
  })
})

testWithOwnRelay.describe('when the relay restarts', () => {
  testWithOwnRelay.use({ mayComplain: /net::ERR_|Failed to load resource/ })

  testWithOwnRelay('an answer in progress is finished first', async ({ chat, relay, page }) => {
    await chat.open('demo/echo')
    await chat.ask(question)
    await chat.reaches(50)
    await relay.process.stop('SIGTERM')
    await chat.ends('complete')
    const text = await chat.text()
    expect(text).toContain(question)
    expect(text).toMatch(/or with trouble\.$/)

    await relay.process.start()
    await page.reload()
    await startsAnew(chat)
  })

  testWithOwnRelay('a crash in the middle of an answer leaves its text in the page', async ({ chat, relay }) => {
    await chat.open('demo/echo')
    await chat.ask(question)
    await chat.reaches(50)
    await relay.process.stop('SIGKILL')
    await expect(chat.notice).toContainText('The connection is lost.')
    const text = await chat.text()
    expect(`You asked: ${question}`).toContain(text)

    await relay.process.start()
    await expect(chat.notice).toContainText('The relay no longer has this conversation.')
    expect(await chat.text()).toBe(text)
    await startsAnew(chat)
  })
})

testWithOwnRelay.describe('when a relay with a file restarts', () => {
  testWithOwnRelay.use({ settings: inFile, mayComplain: /net::ERR_|Failed to load resource/ })

  testWithOwnRelay('a crash in the middle of an answer keeps what was seen of it, and the answer can be had again', async ({ chat, relay }) => {
    await chat.open('demo/echo')
    await chat.ask(question)
    await chat.reaches(50)
    const seen = await chat.text()
    await relay.process.stop('SIGKILL')
    await relay.process.start()
    await chat.ends('failed')
    await chat.showsWhatIsStored()
    expect((await chat.text()).slice(0, seen.length)).toBe(seen)
    await chat.answer.getByRole('button', { name: 'Try again' }).click()
    await chat.reaches(50)
    await arrivesWhole(chat)
    expect(await chat.stored()).toHaveLength(2)
    expect(relay.generations(chat.id())).toBe(2)
  })
})

async function arrivesWhole(chat: Chat) {
  await chat.ends('complete')
  await expect(chat.notice).toHaveCount(0)
  return chat.showsWhatIsStored()
}

async function startsAnew(chat: Chat) {
  await expect(chat.notice).toContainText('The relay no longer has this conversation.')
  await chat.notice.getByRole('button', { name: 'Start a new one' }).click()
  await expect(chat.box).toBeFocused()
  await chat.pick('demo/length')
  await chat.ask('Good morning')
  await arrivesWhole(chat)
  await expect(chat.questions).toHaveCount(1)
}

async function finishes(relay: { counts(): Promise<{ replies_in_progress: number }> }) {
  await expect.poll(async () => (await relay.counts()).replies_in_progress).toBe(0)
}
