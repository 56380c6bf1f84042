"""The mathematics that plugins share. Imports torch and nothing of ours."""
