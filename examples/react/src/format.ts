const format = new Intl.NumberFormat('en', { style: 'currency', currency: 'USD', maximumSignificantDigits: 2 })

/** An amount of US dollars, however small. */
export const dollars = (amount: number) => format.format(amount)
