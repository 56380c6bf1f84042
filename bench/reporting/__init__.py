"""The parts of the report: its numbers, its methods' cards, its picture strips, and the page they go on."""
