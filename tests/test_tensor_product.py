import pytest
import torch
from e3nn import o3
from e3nn.nn.models.v2106.points_convolution import Convolution

from mimyria_wf.response_network import construction
from mimyria_wf.tensor_product import ChannelwiseTensorProduct


@pytest.mark.parametrize(
    ("irreps_in", "irreps_out"),
    [
        ("2x0e", "4x0e+3x1o+2x2e"),
        ("5x0e+4x0o+3x1e+2x1o+2x2e+1x2o+1x3e+2x3o", "6x0e+2x0o+3x1e+3x1o+2x2e+2x2o+1x3o"),
        ("5x0e+3x1o+2x2e+2x3o", "2x1o+1x2o+1x3o"),
    ],
)
def test_equals_e3nn(irreps_in: str, irreps_out: str) -> None:
    harmonics = o3.Irreps.spherical_harmonics(3)
    with construction(0):
        product = Convolution(irreps_in, "0e", harmonics, irreps_out, [4, 8], 5.0).tp
        ours = ChannelwiseTensorProduct(product)
        arguments = [torch.randn(7, n) for n in (product.irreps_in1.dim, harmonics.dim, product.weight_numel)]
        assert ours(*(a[:0] for a in arguments)).shape == (0, product.irreps_out.dim)  # no neighbours
        gradients = []
        for module in (product, ours):
            leaves = [a.clone().requires_grad_() for a in arguments]
            module(*leaves).pow(2).sum().backward()
            gradients.append([leaf.grad for leaf in leaves])
        # Round-off only: both are sums of the same products in another order.
        torch.testing.assert_close(ours(*arguments), product(*arguments), atol=1e-12, rtol=0)
        for expected, found in zip(*gradients, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_refuses_other_modes() -> None:
    with construction(0):
        product = o3.FullyConnectedTensorProduct("2x0e", "1x0e", "2x0e", internal_weights=False, shared_weights=False)
        with pytest.raises(ValueError, match="mode uvu"):
            ChannelwiseTensorProduct(product)
