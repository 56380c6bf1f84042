"""From a request to rows: the plan, the workers, what they draw, and how it is measured."""
