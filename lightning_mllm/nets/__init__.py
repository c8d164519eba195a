"""The nets: one plain `nn.Module` for each architecture, a batch in, losses and answers out.

Nothing here knows training, ranks, evaluation or file formats: a net can be imported, built from three modules and
stepped through alone.
"""
