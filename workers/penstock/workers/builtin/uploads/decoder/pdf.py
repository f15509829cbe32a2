"""PDFs by pypdf: whether one can be read, and by whom."""

from __future__ import annotations

from penstock.workers.builtin.uploads.decoder.messages import PdfAnswer, Refused, Request


def process(request: Request) -> PdfAnswer:
    """Read the structure of a PDF. Raises Refused where it has none, or no page."""
    import pypdf
    from pypdf.errors import DependencyError

    try:
        reader = pypdf.PdfReader(request.source)
        if reader.is_encrypted:
            try:
                if not reader.decrypt(""):  # restrictions alone have an empty password for readers
                    return PdfAnswer(pages=None, needs_password=True)
            except (DependencyError, NotImplementedError):
                return PdfAnswer(pages=None, needs_password=True)
        pages = len(reader.pages)
        if pages:
            reader.pages[0].get("/Type")
    except (Refused, MemoryError):
        raise
    except Exception as error:  # it raises all kinds of errors on broken input
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Refused(f"not a readable PDF: {type(error).__name__}: {error}") from error
    if pages == 0:
        raise Refused("not a readable PDF: it has no page")
    return PdfAnswer(pages=pages, needs_password=False)
