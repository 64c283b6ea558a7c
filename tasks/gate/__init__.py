"""Whether a candidate may be released: evidence, rules, exact tests, verdict."""
