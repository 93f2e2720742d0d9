"""Layouts of the caffe2 files of PySlowFast's model zoo: pickles with blobs of numpy."""

import torch
from torch import Tensor

from vidrobust.models.checkpoints.layout import Layout, Weights
from vidrobust.models.checkpoints.slowfast_layouts import (
    is_pooled,
    one_pathway,
    other_network,
    slow_frames,
    two_pathways,
)

# caffe2's names -> those of PySlowFast's .pyth files; `t_` begins names of the fast pathway
_PYSLOWFAST = (
    (r"^t_pool1_subsample_bn_", "s1_fuse.bn."),
    (r"^t_pool1_subsample_", "s1_fuse.conv_f2s."),
    (r"^t_res(\d)_\d+_branch2c_bn_subsample_bn_", r"s\1_fuse.bn."),
    (r"^t_res(\d)_\d+_branch2c_bn_subsample_", r"s\1_fuse.conv_f2s."),
    (r"^t_", "pathway1_"),
    (r"^(conv1|res)", r"pathway0_\1"),
    (r"^(pathway\d)_conv1_", r"s1.\1_stem.conv."),
    (r"^(pathway\d)_res_conv1_bn_", r"s1.\1_stem.bn."),
    (r"^(pathway\d)_res(\d)_(\d+)_branch1_bn_", r"s\2.\1_res\3.branch1_bn."),
    (r"^(pathway\d)_res(\d)_(\d+)_branch1_", r"s\2.\1_res\3.branch1."),
    (r"^(pathway\d)_res(\d)_(\d+)_branch2([abc])_bn_", r"s\2.\1_res\3.branch2.\4_bn."),
    (r"^(pathway\d)_res(\d)_(\d+)_branch2([abc])_", r"s\2.\1_res\3.branch2.\4."),
    (r"^pred_", "head.projection."),
    (r"\.(w|s)$", ".weight"),
    (r"\.b$", ".bias"),
    (r"\.rm$", ".running_mean"),
    # named after the inverse, but it is the variance
    (r"\.riv$", ".running_var"),
)
# of the optimizer
_DROPS = (r".*momentum", r"lr$", r"model_iter$")


def _with_counters(weights: Weights) -> dict[str, Tensor]:
    """Return weights with the number of batches of each norm, which caffe2 does not keep."""
    counters = {
        key.replace("running_mean", "num_batches_tracked"): torch.tensor(0)
        for key in weights
        if key.endswith(".running_mean")
    }
    return {**weights, **counters}


LAYOUTS = (
    Layout(
        name="PySlowFast SlowFast of caffe2",
        origin="facebookresearch/SlowFast, slowfast/utils/c2_model_loading.py",
        needs=(r"conv1_w$", r"t_conv1_w$", r"t_res_conv1_bn_riv$"),
        renames=(*_PYSLOWFAST, *two_pathways()),
        drops=_DROPS,
        head=r"head\.projection\.",
        options=slow_frames,
        convert=_with_counters,
        refuse=other_network,
    ),
    Layout(
        name="PySlowFast C2D, I3D of caffe2",
        origin="facebookresearch/SlowFast, slowfast/utils/c2_model_loading.py",
        needs=(r"conv1_w$", r"res_conv1_bn_riv$"),
        when=is_pooled,
        renames=(*_PYSLOWFAST, *one_pathway(pooled=True)),
        drops=_DROPS,
        head=r"head\.projection\.",
        convert=_with_counters,
        refuse=other_network,
        note="pairs of frames are pooled after the second stage, as in c2d_r50 and i3d_r50",
    ),
    Layout(
        name="PySlowFast of one pathway of caffe2",
        origin="facebookresearch/SlowFast, slowfast/utils/c2_model_loading.py",
        needs=(r"conv1_w$", r"res_conv1_bn_riv$"),
        renames=(*_PYSLOWFAST, *one_pathway()),
        drops=_DROPS,
        head=r"head\.projection\.",
        convert=_with_counters,
        refuse=other_network,
    ),
)
