"""Mails from jobs: templates, HTML, headers, attachments."""
