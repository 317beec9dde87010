"""Pictures that are shown beside the result."""

import numpy as np
import torch
from PIL import Image

from lib_ccn.webui.pictures import mask_strip


def test_mask_strip_shows_picture_mask_and_both():
    picture = Image.new("L", (12, 6), 200)
    mask = torch.tensor([[True, False], [False, False]])
    strip = np.asarray(mask_strip(picture, mask)).astype(int)
    assert strip.shape == (6, 36, 3)
    assert (strip[:, :12] == 200).all()
    assert (strip[:3, 12:18] == 255).all()
    assert (strip[3:, 12:][:, :12] == 0).all()
    inside, outside = strip[1, 24 + 2], strip[5, 24 + 10]
    assert inside[0] > inside[1]
    assert (outside < 200).all()
