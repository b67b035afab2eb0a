import { expect, requestsOf, testWithOwnRelay as test } from './support/test'

test.use({ mayComplain: /Failed to load resource/ })

test.describe('a conversation that is full', () => {
  test.use({ settings: { MAX_MESSAGES: '3' } })

  test('says so instead of taking a question, asks again only when told, and can be shortened', async ({ chat, page }) => {
    await page.setViewportSize({ width: 600, height: 420 })
    await chat.open('demo/length')
    await chat.ask('First')
    await chat.ends('complete')
    await chat.box.fill('Second')
    await chat.send.click()
    const alert = page.getByRole('alert')
    await expect(alert).toContainText('MAX_MESSAGES is 3')
    await expect(alert).toBeInViewport({ ratio: 1 })
    await expect(chat.questions).toHaveText([/^First/])
    await expect(chat.box).toHaveValue('Second')
    await expect(chat.stop).toHaveCount(0)
    await page.waitForLoadState('networkidle')
    await expect(page.waitForRequest(/./, { timeout: 4_000 })).rejects.toThrow('Timeout')

    const requests = requestsOf(page)
    await chat.send.click()
    await expect.poll(() => requests.filter((url) => url.endsWith('/messages')).length).toBeGreaterThan(0)
    await expect(alert).toContainText('MAX_MESSAGES is 3')
    await chat.questions.first().getByRole('button', { name: 'Edit' }).click()
    await chat.box.fill('Only')
    await chat.send.click()
    await chat.ends('complete')
    await expect(chat.questions).toHaveText([/^Only/])
    await expect(alert).toHaveCount(0)
    await expect(chat.box).toHaveValue('Second')
  })
})

test.describe('a relay that is busy', () => {
  test.use({ settings: { MAX_REPLIES: '1' } })

  test('is asked again when it has said, not before', async ({ chat, anotherTab, relay, page }) => {
    const other = await anotherTab()
    await other.open('demo/silent')
    await other.ask('Take the only place')
    await expect(other.answer).toHaveAttribute('data-status', 'streaming')
    await chat.open('demo/length')
    await chat.box.fill('Is there a place?')
    await chat.send.click()
    await expect(page.getByRole('alert')).toContainText(/MAX_REPLIES.* Trying again …/)
    await expect(page.waitForRequest(/./, { timeout: 4_000 })).rejects.toThrow('Timeout') // of the 5 s
    await page.request.delete(`${relay.url}/conversations/${other.id()}/stream`)
    await chat.ends('complete')
    await expect(page.getByRole('alert')).toHaveCount(0)
    await expect(chat.box).toHaveValue('')
    expect(relay.generations(chat.id())).toBe(1)
  })
})

test.describe('a relay that wants a token', () => {
  test.use({ settings: { AUTH_TOKEN: 'a-token-of-some-length' } })

  test('says so, and isn’t asked again and again', async ({ chat, page }) => {
    await page.goto('/')
    await expect(chat.notice).toContainText('Authorization')
    await page.waitForLoadState('networkidle')
    await expect(page.waitForRequest(/./, { timeout: 4_000 })).rejects.toThrow('Timeout')
    await expect(chat.notice.getByRole('button', { name: 'Try now' })).toBeVisible()
  })
})
