"""The method on a user's own models, beside the plain sum: `run.py compare`.

Conditions are drawn here in the formats that detectors give, pictures are made by a WebUI through
its API, or by diffusers, and one page shows them side by side. Nothing but `local.py` needs torch.
"""
