"""Which of a user's models are taken, by names that are in use."""

import pytest

from compare.nets import KINDS, SD15, SDXL, WELL_KNOWN, NetError, find, is_union, named, read_name

OF = {
    SD15: {
        "openpose": [
            "control_v11p_sd15_openpose [cab727d4]",
            "control_v11p_sd15_openpose_fp16",
            "control_sd15_openpose [fef5e48e]",
            "lllyasviel/control_v11p_sd15_openpose",
            "controlnet11Models_openpose [73c2b67d]",
        ],
        "depth": [
            "control_v11f1p_sd15_depth [cfd03158]",
            "control_v11f1p_sd15_depth_fp16",
            "control_sd15_depth_anything [48a4bc3a]",
            "SD1.5\\control_v11f1p_sd15_depth",
            "control_lora_rank128_v11f1p_sd15_depth",
        ],
        "seg": ["control_v11p_sd15_seg [e1f51eb9]", "control_sd15_seg"],
        "canny": ["control_v11p_sd15_canny [d14c016b]", "sd15/canny.safetensors"],
    },
    SDXL: {
        "openpose": [
            "thibaud_xl_openpose [c7b9cadd]",
            "thibaud_xl_openpose_256lora [14288071]",
            "OpenPoseXL2",
            "controlnet-openpose-sdxl-1.0",
            "kohya/xinsirOpenposeXL",
            "noobaiXLControlnet_openposeModel",
        ],
        "depth": [
            "diffusers_xl_depth_full [2f51180b]",
            "diffusers_xl_depth_mid",
            "diffusers_xl_depth_small",
            "sai_xl_depth_256lora [73ad23d1]",
            "control-lora-depth-rank256",
            "sargezt_xl_depth_zeed",
            "depth-zoe-xl-v1.0-controlnet",
        ],
        "canny": ["diffusers_xl_canny_full", "control-lora-canny-rank128", "sai_xl_canny_128lora"],
    },
}
UNION = [
    "controlnet-union-sdxl-1.0",
    "xinsir_controlnet_union_sdxl_promax",
    "diffusion_pytorch_model_promax [9460e4db]",
]
NEVER = [
    "None",
    "",
    "t2iadapter_openpose_sd14v1 [7e267e5e]",
    "t2iadapter_depth_sd15v2 [3489cd37]",
    "t2i-adapter_diffusers_xl_openpose [adfb64aa]",
    "t2i-adapter_xl_canny",
    "coadapter-depth-sd15v1",
    "ip-adapter-plus_sd15",
    "ip-adapter_instant_id_sdxl",
    "control_instant_id_sdxl",
    "kohya_controllllite_xl_openpose_anime [7e5349e5]",
    "kohya_controllllite_xl_depth",
    "bdsqlsz_controlllite_xl_segment_animeface_V2",
    "control_v11e_sd15_shuffle [526bfdae]",
    "control_v11p_sd15_normalbae [316696f1]",
    "control_v11f1e_sd15_tile",
    "control_v11p_sd15_inpaint",
    "control_v11p_sd15s2_lineart_anime",
    "control_sd15_animal_openpose_fp16",
    "control_sd15_inpaint_depth_hand_fp16",
    "control_v2p_sd15_mediapipe_face",
    "control_v1p_sd15_qrcode_monster",
    "control_v11p_sd21_openposev2",
    "controlnet-sd21-depth-diffusers",
    "flux-canny-controlnet-v3",
    "FLUX.1-dev-Controlnet-Union",
    "sd3.5_large_controlnet_depth",
    "Qwen-Image-ControlNet-Union",
    "controlnet-segmind",
    "mistoLine_fp16",
]
SAID = [(name, kind, f) for f, kinds in OF.items() for kind, all_ in kinds.items() for name in all_]


@pytest.mark.parametrize(("name", "kind", "family"), SAID)
def test_a_name_says_its_kind_and_family(name, kind, family):
    net = read_name(name)
    assert net is not None
    assert (net.kinds, net.family) == ((kind,), family)
    assert find([*NEVER, name], family) == {kind: name}
    other = SDXL if family == SD15 else SD15
    assert find([name], other) == {}


@pytest.mark.parametrize("name", NEVER)
def test_what_is_not_fused_or_is_for_something_else_is_never_taken(name):
    assert read_name(name) is None


@pytest.mark.parametrize("name", UNION)
def test_a_union_is_for_every_kind_where_nothing_better_is_there(name):
    assert is_union(name)
    assert find([name], SDXL) == dict.fromkeys(KINDS, name)
    assert find([name], SD15) == {}
    found = find([name, "diffusers_xl_depth_small"], SDXL)
    assert found["depth"] == "diffusers_xl_depth_small"
    assert found["canny"] == name


@pytest.mark.parametrize(
    ("better", "worse", "family"),
    [
        ("control_v11p_sd15_openpose", "control_sd15_openpose", SD15),
        ("control_v11f1p_sd15_depth", "control_v11p_sd15_depth", SD15),
        ("control_v11p_sd15_canny", "control_canny-fp16", SD15),
        ("control_v11p_sd15_canny", "control_lora_rank128_v11p_sd15_canny", SD15),
        ("diffusers_xl_depth_full", "diffusers_xl_depth_mid", SDXL),
        ("diffusers_xl_depth_full", "sai_xl_depth_256lora", SDXL),
        ("controlnet-openpose-sdxl-1.0", "thibaud_xl_openpose", SDXL),
        ("thibaud_xl_openpose", "noobaiXLControlnet_openposeModel", SDXL),
    ],
)
def test_of_several_the_best_known_is_taken(better, worse, family):
    for names in ([better, worse], [worse, better]):
        assert list(find(names, family).values()) == [better]


def test_old_names_without_a_family_are_stable_diffusion_1_5():
    assert find(["control_openpose-fp16 [9ca67cc5]"], SD15)
    assert find(["control_openpose-fp16 [9ca67cc5]"], SDXL) == {}


@pytest.mark.parametrize("family", [SD15, SDXL])
def test_the_well_known_ones_are_found(family):
    assert find(WELL_KNOWN[family].values(), family) == WELL_KNOWN[family]


class TestNamed:
    LIST = ("my model [0123abcd]", "Another_Depth [89abcdef]", "subfolder/third")

    @pytest.mark.parametrize(
        "name", ["my model [0123abcd]", "my model", "MY MODEL", "My model [ffff]"]
    )
    def test_without_hash_and_in_small_letters(self, name):
        assert named({"depth": name}, self.LIST) == {"depth": self.LIST[0]}

    def test_what_is_not_there_is_said_with_what_is_near(self):
        with pytest.raises(NetError, match=r"depth=other_depth.*did you mean Another_Depth \[89ab"):
            named({"depth": "other_depth"}, self.LIST)
        with pytest.raises(NetError, match=r"seg=x: there is no such ControlNet$"):
            named({"seg": "x"}, ())
