import { expect, test } from './support/test'

test('the example opens, with Vite’s cache still cold', async ({ page, chat }) => {
  await page.goto('/')
  await expect(page.getByRole('heading', { name: 'What would you like to know?' })).toBeVisible()
  await expect(chat.box).toBeFocused()
})
