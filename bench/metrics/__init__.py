"""What is measured of samples and likelihoods; `names` is light, the rest imports torch."""
