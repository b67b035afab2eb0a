import { expect, requestsOf, testWithOwnRelay as test } from './support/test'

test.use({ mayComplain: /Failed to load resource/ })

test.describe('a conversation that is full', () => {
  test.use({ settings: { MAX_MESSAGES: '3' } })

  test('says so instead of an answer, asks again only when told, and can be shortened', async ({ chat, page }) => {
    await page.setViewportSize({ width: 600, height: 420 })
    await chat.open('demo/length')
    await chat.ask('First')
    await chat.ends('complete')
    await chat.ask('Second')
    await expect(chat.notice).toContainText('MAX_MESSAGES is 3')
    await expect(chat.questions.last()).toBeInViewport()
    await expect(chat.notice).toBeInViewport({ ratio: 1 })
    await expect(chat.stop).toHaveCount(0)
    await expect(page.getByText('Waiting for the answer')).toHaveCount(0)
    await expect(page.waitForRequest(/./, { timeout: 4_000 })).rejects.toThrow('Timeout')

    const requests = requestsOf(page)
    await chat.notice.getByRole('button', { name: 'Try now' }).click()
    await expect.poll(() => requests.filter((url) => url.endsWith('/stream')).length).toBeGreaterThan(0)
    await expect(chat.notice).toContainText('MAX_MESSAGES is 3')
    await chat.questions.first().getByRole('button', { name: 'Edit' }).click()
    await chat.box.fill('Only')
    await chat.send.click()
    await chat.ends('complete')
    await expect(chat.questions).toHaveText([/^Only/])
    await expect(chat.notice).toHaveCount(0)
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
    await chat.ask('Is there a place?')
    await expect(chat.notice).toContainText(/MAX_REPLIES.* Trying again …/)
    await expect(page.waitForRequest(/./, { timeout: 4_000 })).rejects.toThrow('Timeout') // of the 5 s
    await page.request.delete(`${relay.url}/conversations/${other.id()}/stream`)
    await chat.ends('complete')
    await expect(chat.notice).toHaveCount(0)
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
