/*
 * Makes the selected annotations a Train, Ignore or Region region.
 * Train: where training looks. Ignore: where nothing counts, neither nuclei nor their absence. Region: a region of
 * interest. The annotation gets the class, a name such as "Train 2" if it has none, and is locked, so that it is not
 * moved while nuclei within are corrected. Nuclei of stqp are only ever marked as Ignore, and stay unlocked.
 *
 * In QuPath: draw or select annotations, Automate > Project scripts > mark region, Run, and choose.
 * Command line: QuPath script mark_region.groovy --project=project.qpproj --args "[Train,name of annotation]" --save
 * Arguments: 1. Train, Ignore or Region; a dialog asks without. 2. and more: names of annotations, or classes that
 *            they have, in place of the selection.
 * QuPath 0.4 to 0.7. Changes class, name and lock of annotations; save the image afterwards.
 */

def colours = [Train: [0, 160, 160], Ignore: [90, 90, 90], Region: [150, 60, 170]]
def options = (binding.hasVariable("args") && args != null ? args as List : []).collect { it.toString().trim() }
def hierarchy = getCurrentHierarchy()
if (hierarchy == null)
    throw new IllegalStateException("mark_region works on an image: open one and select annotations")
def gui = getQuPath()

def annotations = hierarchy.getAnnotationObjects()
def chosen = options.size() > 1
    ? annotations.findAll { it.getName() in options.drop(1) || it.getPathClass()?.toString() in options.drop(1) }
    : getSelectedObjects().findAll { it.isAnnotation() }
if (!chosen) {
    println "no annotation is " + (options.size() > 1 ? "named ${options.drop(1).join(' or ')}" : "selected; draw or select one")
    return
}
def name = options ? options[0] : null
if (name == null && gui != null)
    name = Dialogs.showChoiceDialog("Mark region", "${chosen.size()} annotations become", colours.keySet() as List, "Train")
if (name == null && gui == null)
    throw new IllegalArgumentException("mark_region needs Train, Ignore or Region as its first argument")
if (name == null)
    return
if (!colours.containsKey(name))
    throw new IllegalArgumentException("mark_region knows Train, Ignore and Region, not ${name}")

// metadata can be read and changed by anybody since 0.6
def since06 = PathObject.getMethods().any { it.name == "hasMetadata" }
def metadata = { since06 ? (it.hasMetadata() ? it.getMetadata() : [:]) : it.getUnmodifiableMetadataMap() }
def nuclei = chosen.findAll { metadata(it).get("stqp.source") != null }
if (nuclei && name != "Ignore") {
    println "${nuclei.size()} of the annotations are nuclei of stqp; they stay what they are"
    chosen = chosen.findAll { !(it in nuclei) }
    if (!chosen)
        return
}
def pathClass = PathClass.fromString(name)
if (pathClass.getColor() == null || !(pathClass in (gui?.getAvailablePathClasses() ?: getProject()?.getPathClasses() ?: [])))
    pathClass.setColor(*colours[name])
def taken = annotations*.getName() as Set
def number = 1
chosen.each {
    it.setPathClass(pathClass)
    if (it in nuclei)
        return
    if (!it.getName()) {
        while ("${name} ${number}".toString() in taken)
            number++
        it.setName("${name} ${number++}".toString())
    }
    it.setLocked(true)
}
hierarchy.fireObjectClassificationsChangedEvent(this, chosen)

if (gui != null)
    Platform.runLater {
        if (!gui.getAvailablePathClasses().contains(pathClass))
            gui.getAvailablePathClasses().add(pathClass)
    }
else if (getProject() != null && !getProject().getPathClasses().contains(pathClass))
    getProject().setPathClasses(getProject().getPathClasses() + pathClass)
println "${getProjectEntry()?.getImageName() ?: 'this image'}: ${chosen.size()} marked ${name}"
