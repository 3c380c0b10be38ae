"""Registered operators under torch.compile and torch.export."""

import torch

from warploom.core.torch_ops import register_op


@register_op("test_scale_into(Tensor(a!) out, Tensor x, float factor, str backend) -> ()")
def scale_into(out, x, factor, backend):
    assert backend == "auto"
    torch.mul(x, factor, out=out)


@register_op("test_row_sum(Tensor x) -> Tensor", fake=lambda x: x.new_empty(x.shape[0]))
def row_sum(x):
    return x.sum(1)


def program(x):
    out = torch.empty_like(x)
    scale_into(out, x, 2.0, "auto")
    return row_sum(out) + 1


def test_eager():
    assert program(torch.ones(2, 3)).tolist() == [7, 7]


def test_compiles_in_one_graph_and_for_other_sizes():
    compiled = torch.compile(program, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (2, 5):
        x = torch.randn(rows, 3)
        torch.testing.assert_close(compiled(x), program(x))


def test_exports_as_nodes():
    class Module(torch.nn.Module):
        def forward(self, x):
            return program(x)

    x = torch.randn(2, 3)
    exported = torch.export.export(Module(), (x,))
    assert any("warploom" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), program(x))


def test_mutation_of_a_caller_buffer_is_seen_under_compile():
    def write(out, x):
        scale_into(out, x, 3.0, "auto")

    out = torch.zeros(4)
    torch.compile(write, fullgraph=True, backend="aot_eager")(out, torch.ones(4))
    assert out.tolist() == [3, 3, 3, 3]
