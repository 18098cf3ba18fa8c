"""Write the page on Xenium's versions from the constants that the reader uses."""

from pathlib import Path

from stqp.sources.xenium_versions import versions_document

if __name__ == "__main__":
    page = Path(__file__).with_name("xenium_versions.md")
    page.write_text(versions_document(), encoding="utf-8", newline="\n")
