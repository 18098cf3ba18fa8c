/*
 * Counts, over all images of the project, what a person changed of the nuclei that stqp wrote:
 * from which class to which. Shapes are not compared here; stqp does that when it trains.
 * Writes corrections.csv beside the project file. Changes nothing.
 * QuPath 0.4 to 0.7: Automate > Script editor.
 */

def project = getProject()
if (project == null) {
    println "Open a project first"
    return
}

// public since 0.5
def metadata = { it.respondsTo("getMetadata") ? it.getMetadata() : it.getUnmodifiableMetadataMap() }
def separator = "|"
def rows = new TreeMap<String, Integer>()
def total = 0
def changed = 0
project.getImageList().each { entry ->
    if (!entry.hasImageData())
        return
    def hierarchy = entry.readHierarchy()
    hierarchy.getAllObjects(false).each {
        def written = metadata(it).get("stqp.written")
        if (written == null)
            return
        total++
        // "<class>|<checksum of the outline>"; the class is empty for none
        def was = written.substring(0, written.lastIndexOf(separator))
        def now = it.getPathClass()?.toString() ?: ""
        if (was != now) {
            changed++
            rows.merge([entry.getImageName(), was ?: "(none)", now ?: "(none)"]
                    .collect { '"' + it.replace('"', '""') + '"' }.join(","), 1, Integer::sum)
        }
    }
}

println "${changed} of ${total} objects of stqp have another class now"
rows.each { row, n -> println "${n}  ${row}" }

def file = new File(project.getPath().getParent().toFile(), "corrections.csv")
file.setText("image,written,now,objects\n" + rows.collect { row, n -> "${row},${n}\n" }.join(""), "UTF-8")
println "written to ${file}"
