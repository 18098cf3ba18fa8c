/*
 * Counts the objects of the open image by class, and selects those of one class.
 * QuPath 0.4 to 0.7: Automate > Script editor.
 */

// The class to select, e.g. "Neoplastic" or "Tumor: Positive"; null selects nothing
def selectClass = null
// true: only objects that stqp wrote
def onlyStqp = false

// public since 0.5
def metadata = { it.respondsTo("getMetadata") ? it.getMetadata() : it.getUnmodifiableMetadataMap() }

def objects = getCurrentHierarchy().getAllObjects(false)
        .findAll { !onlyStqp || metadata(it).get("stqp.source") != null }

def counts = new TreeMap<String, Integer>()
objects.each {
    def text = (it.isAnnotation() ? "annotation" : "detection") + "  " + (it.getPathClass()?.toString() ?: "(no class)")
    counts.merge(text, 1, Integer::sum)
}
println "${getProjectEntry()?.getImageName() ?: 'this image'}: ${objects.size()} objects"
counts.each { text, n -> println String.format("%9d  %s", n, text) }

if (selectClass != null) {
    def chosen = objects.findAll { it.getPathClass()?.toString() == selectClass }
    selectObjects(chosen)
    println "selected ${chosen.size()} of class ${selectClass}"
}
