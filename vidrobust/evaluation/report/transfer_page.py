"""Render transfer.html: the matrix of attacked and measured models."""

from vidrobust.evaluation.report.page import render
from vidrobust.evaluation.report.transfer_tables import in_short
from vidrobust.evaluation.transfer_matrix import TransferMatrix


def matrix_page(matrix: TransferMatrix) -> str:
    """Return transfer.html."""
    return render(
        "transfer.html",
        title=f"{matrix.dataset}: transfer of attacks",
        heading=f"{matrix.dataset}, {matrix.split}: transfer of attacks",
        verdict=in_short(matrix),
        matrix_=matrix,
        names=[model.name for model in matrix.models],
    )
