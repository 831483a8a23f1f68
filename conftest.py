"""For each run of pytest, also of one notebook: a claim of a lesson that does not hold is an error.

See Lab.expect. The kernels that run the notebooks inherit this environment."""

import os

os.environ["LABKIT_STRICT"] = "1"
