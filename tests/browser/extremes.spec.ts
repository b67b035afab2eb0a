import { words } from './support/chat'
import { expect, test } from './support/test'

test('on a slow network an answer arrives whole, although the page is reloaded in the middle', async ({ chat, context, page }) => {
  await chat.open('demo/echo')
  const network = await context.newCDPSession(page)
  const limits = { offline: false, latency: 1_000, downloadThroughput: 8_000, uploadThroughput: 4_000 } // ms, bytes a second
  await network.send('Network.emulateNetworkConditions', limits)
  await chat.ask(`Repeat: ${words(150)}`)
  await chat.reaches(20)
  await expect(chat.answer).toHaveAttribute('data-status', 'streaming')
  await page.reload()
  await chat.ends('complete')
  await chat.showsWhatIsStored()
  expect(await chat.stored()).toHaveLength(2)
})

test('200,000 characters can be pasted, asked and answered', async ({ chat, context, page }) => {
  await context.grantPermissions(['clipboard-read', 'clipboard-write'])
  await chat.open('demo/length')
  const text = 'word '.repeat(40_000).trim() + '.'
  expect(text).toHaveLength(200_000)
  await page.evaluate((text) => navigator.clipboard.writeText(text), text)
  await chat.box.press('ControlOrMeta+V')
  await expect(chat.box).toHaveValue(text)
  await chat.send.click()
  await chat.ends('complete')
  const [question, answer] = await chat.stored()
  expect(question!.content === text).toBe(true)
  expect(answer!.status).toBe('complete')
  await expect(chat.box).toHaveValue('')
  await expect(chat.answer).toBeInViewport()
})
