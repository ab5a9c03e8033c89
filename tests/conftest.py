"""Settings that every test shares."""

import torch
from hypothesis import settings

# Machines are noisy, so no example is timed; derandomized, so a failure in CI is the same failure at home.
settings.register_profile("unbraid", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("unbraid")

torch.set_num_threads(1)
